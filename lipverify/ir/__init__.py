"""What we talk about: graphs, operators, norms, regions, intervals, certificates. Depends on torch, on nothing of ours
except the exceptions."""
