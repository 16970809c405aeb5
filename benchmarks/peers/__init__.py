"""Every living peer on the same weights, data and budget: one adapter a package, each in an environment of its own."""
