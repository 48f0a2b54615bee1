"""State of vCPUs that is no stream: raw structures, documents, other VMMs' snapshots."""
