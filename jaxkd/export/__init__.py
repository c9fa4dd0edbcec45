"""A trained student as a folder that runs elsewhere: python -m jaxkd.export."""
