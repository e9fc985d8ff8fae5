"""The page measured: start-up, click to answer, and many visitors at once."""
