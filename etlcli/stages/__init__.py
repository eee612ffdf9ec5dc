"""Stages. A stage's file name is its subcommand, its `uses:` name in a recipe, its case folder and its man page."""
