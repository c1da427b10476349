"""The strategies that come with cot-engine, one per file, written on its public names only."""
