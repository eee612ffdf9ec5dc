"""The command line.

main.py       the `etl` command, lazily grown; the one place where an error becomes an exit code
component.py  a source, stage or sink as a subcommand: its options, and the recipe it stands for
run.py        `etl run`
replay.py     `etl replay`
cache.py      `etl cache`
init.py       `etl init`
"""
