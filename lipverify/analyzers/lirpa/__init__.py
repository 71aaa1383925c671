"""auto_LiRPA of other authors as an analyzer: found at run time, driven from a plain module of the graph, cross-checked."""
