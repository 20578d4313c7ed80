-- Grants and row-level security for v0008_reminders.py. Frozen with it.
--
-- Jobs make reminders and send them. Whom they are for reads them and says so; nobody else sees them, administrators included.

ALTER TABLE public.notification ENABLE ROW LEVEL SECURITY;
ALTER TABLE public.notification FORCE ROW LEVEL SECURITY;

GRANT SELECT, UPDATE (read_at) ON public.notification TO keybearer_app;
GRANT SELECT, INSERT, UPDATE ON public.notification TO keybearer_system;
CREATE POLICY app ON public.notification TO keybearer_app USING (user_id = (SELECT public.keybearer_caller()));
CREATE POLICY system ON public.notification TO keybearer_system USING (true);
