"""The synthetic world behind the bundled model: chests, reports, questions, all from a seed."""
