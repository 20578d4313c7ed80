-- Grants and row-level security for v0005_rotation.py. Frozen with it.

ALTER TABLE public.key_rotation ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.key_rotation FORCE ROW LEVEL SECURITY;
ALTER TABLE public.key_holder ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.key_holder FORCE ROW LEVEL SECURITY;

GRANT SELECT, INSERT, UPDATE ON public.key_rotation TO keybearer_system;
GRANT SELECT, INSERT, UPDATE, DELETE ON public.key_holder TO keybearer_system;
CREATE POLICY system ON public.key_rotation TO keybearer_system USING (true);
CREATE POLICY system ON public.key_holder TO keybearer_system USING (true);

-- Whoever seals locks the owner key's row FOR SHARE, which asks for the right to update; no update passes the check.
GRANT UPDATE ON public.owner_key TO keybearer_app;
CREATE POLICY app_lock ON public.owner_key FOR UPDATE TO keybearer_app USING (true) WITH CHECK (false);

-- Rotation counts what is still sealed under a key, and for whom; the envelope itself stays out of the system's sight, and what jobs
-- may take away stays what it was.
GRANT SELECT (owner_key_id) ON public.secret_version TO keybearer_system;
ALTER POLICY system_read ON public.secret_version USING (true);
