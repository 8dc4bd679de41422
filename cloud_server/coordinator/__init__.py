"""The coordinator process: SuperLink, proxy of the fleet, inference service."""
