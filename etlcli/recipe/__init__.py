"""Recipes: what a pipeline is made of, as data.

model.py    Recipe, StepSpec: the resolved plan; a subcommand builds one in code, `run` from YAML
load.py     YAML -> model, with file, line and column for every error
files.py    the files it names: none may be written by two
facts.py    what its result depends on, so that no run is gone on with by another recipe
schema.py   the recipe's JSON Schema, made from the components' options
"""
