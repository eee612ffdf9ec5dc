"""How stages are run: the same way for a subcommand and a recipe.

pipeline.py    builds the components and pulls batches through them
quarantine.py  the file of rejected records
"""
