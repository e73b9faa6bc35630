"""Scripts: run one as it is, and follow the models that it makes."""
