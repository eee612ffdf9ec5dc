"""JSON Schema: loading, verdicts, explanations, and the changes a schema may ask for (defaults, coercion).

load.py     file -> checked schema; never asks the network or another file
verdict.py  which records are valid, and every error of those that are not
shape.py    the fast yes: schemas a typed decoder can express, checked while decoding
fill.py     defaults and lossless coercion
"""
