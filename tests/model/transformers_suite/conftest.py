"""These files run against the tests of transformers' sdist, by ../test_transformers_suite.py; pytest skips them."""

collect_ignore_glob = ["check_*.py"]
