"""A project's own data sets and models, and the uploads that they are made of."""
