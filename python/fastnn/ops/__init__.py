"""One file per op: the autograd function, its public function and the torch twin."""
