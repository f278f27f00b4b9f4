"""The libraries that fastnn is compared with.

`onednn` and `compiled` run in our process, as parts of torch. numpy, JAX and scikit-learn each run in a
process of their own (`remote`, `worker` and one ``<library>_peer`` file each), for three reasons: OpenBLAS
and XLA read their number of threads and their choice of kernels when they are loaded; thread pools do not
interfere with each other; and a process's CPU time shows how many threads really worked.
"""
