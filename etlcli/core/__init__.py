"""Values and contracts. Nothing in here touches a file or a socket.

A *record* is one JSON object on one line; a `Batch` is a run of records in input order, held as the bytes they
came in for as long as that is possible. A `Stage` has two halves, so that the same code runs in a shell pipe, in one
process and later in many: `prepare` is pure and may run anywhere, `apply` is ordered and holds the state.

    intake.py    bytes of whole lines -> a Batch of valid records, and the rejects
    batch.py     Batch, Origin
    fields.py    field paths, columns of values, numbers that are what the record says
    projection.py, access.py
                 decoding only some fields, and their values out of decoded records
    settling.py  when what was met so far may be taken for all there is
    code.py      functions that are written at run time
    edit.py      changing some fields of a record, leaving the bytes of the others alone
    expressions.py, functions.py
                 text -> checked tree -> code over columns, and what its operations do
    explain.py   what can be said of one record to a person
    reshape.py   setting, dropping, keeping and renaming fields of opened records
    keys.py      texts that are equal where values are
    ordering.py  order-preserving keys for any JSON values
    params.py    one declaration per option
    exact.py     arithmetic that rounds once
    aggregates.py, groups.py
                 what is worked out about groups of records, in parts that can be merged
    stage.py     Source, Stage, Sink, Context, Timed, Explains
    files.py     what a step may write
    policy.py    what happens to a rejected record
    ledger.py    the counts behind "nothing is lost silently"
    effort.py    what a step's work takes: bytes, seconds, waiting
"""
