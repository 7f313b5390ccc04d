"""The study of audits: shipped pipelines and naive ones, each held against the ε that it claims."""
