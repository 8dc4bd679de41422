"""The coordinator process: SuperLink, fleet proxy, inference service."""
