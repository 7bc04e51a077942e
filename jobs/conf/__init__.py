"""YAML values of the configuration groups: source, recipe, cluster."""
