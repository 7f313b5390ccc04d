"""Audits: empirical lower bounds on privacy, held against what a mechanism claims."""

from dpcomp.audit.added_example import AddedExample as AddedExample
from dpcomp.audit.audit import AuditResult as AuditResult
from dpcomp.audit.audit import audit as audit
from dpcomp.audit.blocks import Blocks as Blocks
from dpcomp.audit.claims import AuditedClaim as AuditedClaim
from dpcomp.audit.claims import ClaimOfGuarantee as ClaimOfGuarantee
from dpcomp.audit.claims import ClaimOfReleases as ClaimOfReleases
from dpcomp.audit.observations import Door as Door
from dpcomp.audit.observations import Observations as Observations
from dpcomp.audit.observations import message_features as message_features
from dpcomp.audit.observations import stacked as stacked
from dpcomp.audit.serving import Serving as Serving
from dpcomp.audit.training import Training as Training
