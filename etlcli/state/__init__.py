"""Keyed stores: what a stage knows about keys, in bounded memory and, with a cache file, from run to run.

    sqlite.py   a table of keys and JSON values in SQLite, for one run or in a cache file
    store.py    the newest keys in memory, the others in such a table
    inspect.py  cache files as `etl cache` shows them, through sqlitedict

A stage asks for and puts whole batches of keys. Nothing is ever pickled: a value is JSON, or it is refused.
"""
