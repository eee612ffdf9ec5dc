"""What a run says about itself.

logs.py     one line an event on stderr, the same fields in every format
status.py   what is known of a run at one moment, for all who watch it
tracing.py  a run as OpenTelemetry spans
lineage.py  a run as OpenLineage events
courier.py  sends to servers that may be slow, or not there
report.py   the run report: as JSON, and as a page made by page.py with the shapes of picture.py (the pipeline) and
            chart.py, the texts of markup.py (nothing is markup that was not made there) and the looks of report.css
timeline.py how counts grew, in bounded memory
"""
