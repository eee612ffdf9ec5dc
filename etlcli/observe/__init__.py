"""What a run says about itself.

logs.py   one line an event on stderr, the same fields in every format
"""
