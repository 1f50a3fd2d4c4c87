"""One file a host library; each is the only place that imports its host."""
