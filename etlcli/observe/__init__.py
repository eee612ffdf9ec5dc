"""What a run says about itself.

status.py    what is known of a run at one moment, and who may look
logs.py      one line an event on stderr, the same fields in every format
metrics.py   what a recipe says of metrics for Prometheus; shown by the process of exporter.py, made into series by
             series.py, through the doors of doors.py: a Pushgateway, a text file, an address to be scraped
progress.py  a line on a terminal that changes in place
report.py    the run report: as JSON, and as a page made by page.py with the shapes of picture.py (the pipeline) and
             chart.py, the texts of markup.py (nothing is markup that was not made there) and the looks of report.css
timeline.py  how counts grew, in bounded memory
control.py   a socket for the user's other processes: `etl ps`, `etl top`, `etl tap`
tracing.py   a run as OpenTelemetry spans
lineage.py   a run as OpenLineage events
courier.py   sends to servers that may be slow, or not there
periodic.py  what is done every few seconds
rates.py     how fast a run is
figures.py   figures as people read them
"""
