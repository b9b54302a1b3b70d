"""Where runs are kept: LangGraph's own savers, opened as this package's graphs want them."""
