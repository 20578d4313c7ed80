-- Grants for v0011_checks.py. Frozen with it.
--
-- Jobs say when a secret is tested next, and what a test found; values stay closed to them.

GRANT UPDATE (check_at, check_runner, check_failures, checked_at, check_status, check_reason, failed_at) ON public.secret
    TO keybearer_system;
