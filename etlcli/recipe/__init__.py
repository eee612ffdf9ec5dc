"""Recipes: what a pipeline is made of, as data.

model.py    Recipe, StepSpec: the resolved plan; a subcommand builds one in code, `run` from YAML
load.py     YAML -> model, with file, line and column for every error
schema.py   the recipe's JSON Schema, made from the components' options
"""
