"""Layer builders."""
