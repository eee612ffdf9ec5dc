"""etl: a command-line ETL toolkit. Each package's docstring is its README; start with `etlcli.core`."""

__version__ = "0.1.0"
