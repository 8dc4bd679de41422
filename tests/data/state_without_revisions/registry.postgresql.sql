-- A database of fedstill at revision 866284a, before schemas had numbers; every table has rows. Never change it.
CREATE TABLE public.active_tasks (
    name character varying(64) NOT NULL,
    version integer NOT NULL
);
CREATE TABLE public.changes (
    generation integer NOT NULL
);
CREATE SEQUENCE public.changes_generation_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.changes_generation_seq OWNED BY public.changes.generation;
CREATE TABLE public.task_versions (
    name character varying(64) NOT NULL,
    version integer NOT NULL,
    class_names character varying NOT NULL,
    trunk character varying(64) NOT NULL,
    parameters character varying(64) NOT NULL,
    prompts character varying NOT NULL,
    latency_ms double precision NOT NULL,
    utility double precision NOT NULL,
    accuracy double precision NOT NULL,
    created character varying(32) NOT NULL
);
ALTER TABLE ONLY public.changes ALTER COLUMN generation SET DEFAULT nextval('public.changes_generation_seq'::regclass);
INSERT INTO public.active_tasks VALUES ('cars', 1);
INSERT INTO public.active_tasks VALUES ('birds', 1);
INSERT INTO public.changes VALUES (6);
INSERT INTO public.task_versions VALUES ('birds', 1, '["class0", "class1"]', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', '4b29c24d1a43fb8f6e89c4779543a236ba8dd932ae4f301138962fc4b40b0622', '[2]', 300, 0.5, 0.75, '2026-07-01T12:40:00+00:00');
INSERT INTO public.task_versions VALUES ('birds', 2, '["class0", "class1", "class2"]', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', '5b5875f967df0f26f6296da04e97d2f4c71f78913fa32dd76f899a3f380c6082', '[2]', 600, 1, 0.875, '2026-07-01T12:41:00+00:00');
INSERT INTO public.task_versions VALUES ('cars', 1, '["class0", "class1"]', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', '48c2f97bbc74582cbaa07aa398f1c7f239a8b8a9864aa521138a0f90a6e3d9f8', '[2]', 600, 1, 0, '2026-07-01T12:42:00+00:00');
INSERT INTO public.task_versions VALUES ('gone', 1, '["class0", "class1"]', 'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', '8b125bae37289d741da4d6897479e2a812ca29c4ee30f4bffd40bd4c8dde17a2', '[2]', 600, 1, 0, '2026-07-01T12:43:00+00:00');
SELECT pg_catalog.setval('public.changes_generation_seq', 1, false);
ALTER TABLE ONLY public.active_tasks
    ADD CONSTRAINT active_tasks_pkey PRIMARY KEY (name);
ALTER TABLE ONLY public.changes
    ADD CONSTRAINT changes_pkey PRIMARY KEY (generation);
ALTER TABLE ONLY public.task_versions
    ADD CONSTRAINT task_versions_pkey PRIMARY KEY (name, version);
