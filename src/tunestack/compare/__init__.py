"""Which candidate is best, how sure that is, and which one to ship."""
