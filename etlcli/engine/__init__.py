"""How stages are run: the same way for a subcommand and a recipe.

pipeline.py    builds the components and pulls batches through them
step.py        one of them at work: what it puts out, counts and rejects
recovery.py    another try and a fallback, before the policy has the last word
quarantine.py  the file of rejected records
replay.py      records of that file once more
"""
