"""HTTP around the routes: authentication, dependencies, problems, rate limits."""
