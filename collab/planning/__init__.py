"""What a config needs of a mesh and of its chips, found without them.

`slices` reads what a job gets, `programs` builds and compiles the steps of training for
described devices, `hlo` counts what the compiler made of them, `memory` sums what lies on a device
and when, `table` puts it in words. The command is `collab.plan`.
"""
