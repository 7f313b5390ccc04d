"""Terms: what both ends of a federation must agree on, as one file, and what a client allows of them."""

from dpcomp.terms.client_policy import ClientPolicy as ClientPolicy
from dpcomp.terms.federation_terms import FederationTerms as FederationTerms
