"""How stages are run: the same way for a subcommand and a recipe.

pipeline.py    builds the components and pulls batches through them
head.py        the source and the steps that hold no state: what any process may do
workers.py     processes that do it
step.py        one component at work: what it puts out, counts and rejects
window.py      questions to somebody else, several at a time
recovery.py    another try and a fallback, before the policy has the last word
outlet.py      where records leave: a sink, or several
quarantine.py  the file of rejected records
replay.py      records of that file once more
why.py         one record through all steps, to see what becomes of it
checkpoint.py  keeps a run so that another process can go on with it
manifest.py    the file that makes a checkpoint count
drain.py       signals that wait for one
overlap.py     one run at a time
"""
