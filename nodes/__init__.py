"""The nodes: each is two pure functions around one metered call.

prompt(view of the run, move, detail) -> messages      what to ask
absorb(task, reply) -> part of an outcome              what the reply means
"""
