"""Many questions, answered in many ways: the plan, the run, its figures and tables.

All answers come from the pipeline that serves one case. Nothing here writes HTML.
"""
