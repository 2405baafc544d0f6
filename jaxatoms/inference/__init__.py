"""A checkpoint as a model, its predictions and errors, and what a result was made from."""
