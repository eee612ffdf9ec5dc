"""`etl`, with worker processes for every run and parts so small that a few records make many.

ETL_TEST_WORKERS says how many. It stands for the program in the cases' other modes, which must give the same bytes.
"""

import os
import sys

from etlcli import __main__ as program
from etlcli.core import stage
from etlcli.engine import pipeline
from etlcli.formats import ndjson
from etlcli.io import extents

for module in (stage, extents, ndjson):
    module.PART = 100
pipeline.Pipeline._workers = lambda self, source: int(os.environ["ETL_TEST_WORKERS"])

if __name__ == "__main__":
    sys.argv[0] = "etl"
    program.main()
