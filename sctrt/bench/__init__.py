"""The benchmark suite: what is fast, by how much, beside what one would use instead, and whether it is still right.

`sctrt bench` runs it; docs/benchmarks.md says what is measured and how to read it. A suite is a file of `suites/`; what
it finds is a `report.Report`. Torch and other libraries that are only compared with are loaded where a way needs them,
and a way whose library is missing is left out with the pip line that brings it.
"""
