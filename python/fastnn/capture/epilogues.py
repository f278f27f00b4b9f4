def fuse_epilogues(nodes, kept=()):
    return list(nodes)
