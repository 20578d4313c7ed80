-- Grants and row-level security for v0012_hooks.py. Frozen with it.
--
-- Whose it is sees, changes and opens it, nobody else. Jobs see who wants what told, and say what went wrong; never the envelope.

ALTER TABLE public.reminder_hook ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.reminder_hook FORCE ROW LEVEL SECURITY;

GRANT SELECT, INSERT, UPDATE, DELETE ON public.reminder_hook TO keybearer_app;
GRANT SELECT (owner_id, owner_key_id, version, kinds, is_active), UPDATE (is_active, problem) ON public.reminder_hook
    TO keybearer_system;
CREATE POLICY app ON public.reminder_hook TO keybearer_app USING (owner_id = (SELECT public.keybearer_caller()));
CREATE POLICY system ON public.reminder_hook TO keybearer_system USING (true);
