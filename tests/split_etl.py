"""`etl` with parts so small that a few records make many. It stands for the program in the cases' other modes, which must
give the same bytes.

ETL_TEST_PART says how large parts are, ETL_TEST_WORKERS how many worker processes every run has; ETL_TEST_DELAY how many
milliseconds a part takes at most, by chance; ETL_TEST_OPEN in which directory there may be a shell script 1 that is run
before the first input is opened, and so on; ETL_TEST_WAIT how many seconds a signal waits, and then the end of what ends;
ETL_TEST_KILL after which of its checkpoints a run is killed, ETL_TEST_DIE the same with `early`, when everything but the manifest is there, or `late`, when that is, too.
"""

import os
import random
import signal
import subprocess
import sys
import time
from itertools import count

from etlcli import __main__ as program
from etlcli.connectors import read
from etlcli.core import stage
from etlcli.engine import drain, head, manifest, pipeline
from etlcli.formats import ndjson
from etlcli.io import extents, signals
from etlcli.io.inputs import Input

for module in (stage, extents, ndjson):
    module.PART = int(os.environ.get("ETL_TEST_PART", "100"))
if "ETL_TEST_WORKERS" in os.environ:
    pipeline.Pipeline._workers = lambda self, source: int(os.environ["ETL_TEST_WORKERS"])

    def scale(self: pipeline.Pipeline, source: stage.Source, head: head.Head, count: int) -> int:
        source.ctx.scale = 3 if head.combines else 1  # from the first part on
        return source.ctx.scale

    pipeline.Pipeline._scale = scale
if "ETL_TEST_DELAY" in os.environ:
    longest = int(os.environ["ETL_TEST_DELAY"]) / 1000
    work = head.Head.work

    def work_slowly(self: head.Head, part: object) -> head.Worked:
        time.sleep(random.SystemRandom().uniform(0, longest))
        return work(self, part)

    head.Head.work = work_slowly
if "ETL_TEST_WAIT" in os.environ:
    drain._LONGEST_WAIT = signals._CLEANING_UP = float(os.environ["ETL_TEST_WAIT"])
if "ETL_TEST_OPEN" in os.environ:
    turns, open_input = count(1), read.open_input

    def disturbed(path: str) -> Input:
        script = os.path.join(os.environ["ETL_TEST_OPEN"], str(next(turns)))
        if os.path.exists(script):
            subprocess.run(["sh", "-e", script], check=True)
        return open_input(path)

    read.open_input = disturbed
kill, _, when = (os.environ.get("ETL_TEST_DIE") or os.environ.get("ETL_TEST_KILL", "")).partition(" ")
if kill:
    places = iter(range(int(kill) - 1, -1, -1))
    save = manifest.save

    def save_and_die(directory: str, content: manifest.Manifest) -> None:
        if when != "early":
            save(directory, content)
        # A run that has said that it is finished is one, whatever becomes of its process.
        if content.status != manifest.FINISHED and next(places, None) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if when == "early":
            save(directory, content)

    manifest.save = save_and_die

if __name__ == "__main__":
    sys.argv[0] = "etl"
    program.main()
