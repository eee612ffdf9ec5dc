"""`python -m etlcli` is `etl`."""

from etlcli.cli.main import main

main()
