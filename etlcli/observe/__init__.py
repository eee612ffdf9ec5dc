"""What a run says about itself.

logs.py     one line an event on stderr, the same fields in every format
status.py   what is known of a run at one moment, for all who watch it
tracing.py  a run as OpenTelemetry spans
lineage.py  a run as OpenLineage events
courier.py  sends to servers that may be slow, or not there
"""
