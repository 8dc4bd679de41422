-- A database of fedstill at revision 866284a, before schemas had numbers; every table has rows. Never change it.
CREATE TABLE public.failures (
    job character varying(200) NOT NULL,
    round integer NOT NULL,
    record json,
    at double precision NOT NULL
);
CREATE TABLE public.jobs (
    job character varying(200) NOT NULL,
    client integer,
    seed integer,
    record json,
    finished double precision NOT NULL
);
CREATE TABLE public.nodes (
    client integer NOT NULL,
    node character varying(200),
    name character varying(200),
    version character varying(200),
    state character varying(200),
    since double precision NOT NULL,
    seen double precision NOT NULL
);
CREATE TABLE public.privacy (
    job character varying(200) NOT NULL,
    round integer NOT NULL,
    client integer,
    kind character varying(200),
    clips integer,
    epsilon double precision,
    delta double precision,
    released double precision NOT NULL
);
CREATE TABLE public.rounds (
    job character varying(200) NOT NULL,
    round integer NOT NULL,
    losses json,
    class_counts json,
    state_file character varying(200),
    finished double precision NOT NULL
);
CREATE TABLE public.selections (
    job character varying(200) NOT NULL,
    round integer NOT NULL,
    content bytea,
    chosen double precision NOT NULL
);
CREATE TABLE public.students (
    job character varying(200) NOT NULL,
    version character varying(200),
    file character varying(200),
    bytes integer,
    made double precision NOT NULL
);
CREATE TABLE public.traffic (
    "row" integer NOT NULL,
    job character varying(200),
    client integer,
    round integer,
    action character varying(200),
    up_bytes integer,
    down_bytes integer,
    at double precision NOT NULL
);
CREATE SEQUENCE public.traffic_row_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.traffic_row_seq OWNED BY public.traffic."row";
CREATE TABLE public.uploads (
    job character varying(200) NOT NULL,
    round integer NOT NULL,
    client integer,
    content bytea,
    accepted double precision NOT NULL
);
ALTER TABLE ONLY public.traffic ALTER COLUMN "row" SET DEFAULT nextval('public.traffic_row_seq'::regclass);
INSERT INTO public.failures VALUES ('latency_sensitive/fedstill/client1/seed0', 1, '{"round": 1, "reason": "device left"}', 1760000018.25);
INSERT INTO public.jobs VALUES ('latency_sensitive/fedstill/client0/seed0', 0, 0, '{"losses": [0.5, 0.25], "evaluations": [{"correct": 3, "total": 4}]}', 1760000012.25);
INSERT INTO public.nodes VALUES (0, '4200', 'kitchen', '0.1.0', 'connected', 1760000001.25, 1760000001.25);
INSERT INTO public.nodes VALUES (1, '4201', 'hall', '0.1.0', 'dead', 1760000003.25, 1760000003.25);
INSERT INTO public.privacy VALUES ('latency_sensitive/fedstill/client0/seed0', 0, 0, 'histogram', 11, 0, 0, 1760000004.25);
INSERT INTO public.privacy VALUES ('latency_sensitive/fedstill/client0/seed0', 1, 0, 'histogram', 12, 0, 0, 1760000008.25);
INSERT INTO public.privacy VALUES ('latency_sensitive/fedstill/client1/seed0', 0, 1, 'dp', 11, 4, 1e-05, 1760000014.25);
INSERT INTO public.rounds VALUES ('latency_sensitive/fedstill/client0/seed0', 0, '[0.5, 0.25]', '[3, 4, 5]', 'jobs/latency_sensitive/fedstill/client0/seed0/round0.safetensors', 1760000007.25);
INSERT INTO public.rounds VALUES ('latency_sensitive/fedstill/client0/seed0', 1, '[0.5, 0.25]', '[3, 4, 5]', 'jobs/latency_sensitive/fedstill/client0/seed0/round1.safetensors', 1760000011.25);
INSERT INTO public.rounds VALUES ('latency_sensitive/fedstill/client1/seed0', 0, '[0.5, 0.25]', '[3, 4, 5]', 'jobs/latency_sensitive/fedstill/client1/seed0/round0.safetensors', 1760000017.25);
INSERT INTO public.selections VALUES ('latency_sensitive/fedstill/client0/seed0', 0, '\x80000000000000007b22706f736974696f6e73223a7b226474797065223a22493634222c227368617065223a5b335d2c22646174615f6f666673657473223a5b302c32345d7d2c2277656967687473223a7b226474797065223a22463332222c227368617065223a5b335d2c22646174615f6f666673657473223a5b32342c33365d7d7d202020200300000000000000010000000000000002000000000000000000803f000000400000003f', 1760000005.25);
INSERT INTO public.selections VALUES ('latency_sensitive/fedstill/client0/seed0', 1, '\x80000000000000007b22706f736974696f6e73223a7b226474797065223a22493634222c227368617065223a5b335d2c22646174615f6f666673657473223a5b302c32345d7d2c2277656967687473223a7b226474797065223a22463332222c227368617065223a5b335d2c22646174615f6f666673657473223a5b32342c33365d7d7d202020200300000000000000010000000000000002000000000000000000803f000000400000003f', 1760000009.25);
INSERT INTO public.selections VALUES ('latency_sensitive/fedstill/client1/seed0', 0, '\x80000000000000007b22706f736974696f6e73223a7b226474797065223a22493634222c227368617065223a5b335d2c22646174615f6f666673657473223a5b302c32345d7d2c2277656967687473223a7b226474797065223a22463332222c227368617065223a5b335d2c22646174615f6f666673657473223a5b32342c33365d7d7d202020200300000000000000010000000000000002000000000000000000803f000000400000003f', 1760000015.25);
INSERT INTO public.students VALUES ('latency_sensitive/fedstill/client0/seed0', 'abababababababababababababababababababababababababababababababab', 'students/abababababababababababababababababababababababababababababababab.safetensors', 4096, 1760000013.25);
INSERT INTO public.traffic VALUES (1, 'latency_sensitive/fedstill/client0/seed0', 0, 0, 'query.prototypes', 321, 45678, 1760000006.25);
INSERT INTO public.traffic VALUES (2, 'latency_sensitive/fedstill/client0/seed0', 0, 1, 'query.prototypes', 321, 45678, 1760000010.25);
INSERT INTO public.traffic VALUES (3, 'latency_sensitive/fedstill/client1/seed0', 1, 0, 'query.prototypes', 321, 45678, 1760000016.25);
INSERT INTO public.uploads VALUES ('latency_sensitive/fedstill/client0/seed0', 0, 0, '\xc8000000000000007b225f5f6d657461646174615f5f223a7b22636c6173735f6e616d6573223a225b5c2263616c6d5c222c205c2268617070795c222c205c227361645c225d227d2c22636f756e7473223a7b226474797065223a22493634222c227368617065223a5b325d2c22646174615f6f666673657473223a5b302c31365d7d2c2270726f626162696c6974696573223a7b226474797065223a22463332222c227368617065223a5b322c335d2c22646174615f6f666673657473223a5b31362c34305d7d7d20202020202020070000000000000004000000000000000000003f0000803e0000803e0000003e0000003e0000403f', 1760000004.25);
INSERT INTO public.uploads VALUES ('latency_sensitive/fedstill/client0/seed0', 1, 0, '\xc8000000000000007b225f5f6d657461646174615f5f223a7b22636c6173735f6e616d6573223a225b5c2263616c6d5c222c205c2268617070795c222c205c227361645c225d227d2c22636f756e7473223a7b226474797065223a22493634222c227368617065223a5b325d2c22646174615f6f666673657473223a5b302c31365d7d2c2270726f626162696c6974696573223a7b226474797065223a22463332222c227368617065223a5b322c335d2c22646174615f6f666673657473223a5b31362c34305d7d7d20202020202020070000000000000005000000000000000000003f0000803e0000803e0000003e0000003e0000403f', 1760000008.25);
INSERT INTO public.uploads VALUES ('latency_sensitive/fedstill/client1/seed0', 0, 1, '\xc8000000000000007b225f5f6d657461646174615f5f223a7b22636c6173735f6e616d6573223a225b5c2263616c6d5c222c205c2268617070795c222c205c227361645c225d227d2c22636f756e7473223a7b226474797065223a22493634222c227368617065223a5b325d2c22646174615f6f666673657473223a5b302c31365d7d2c2270726f626162696c6974696573223a7b226474797065223a22463332222c227368617065223a5b322c335d2c22646174615f6f666673657473223a5b31362c34305d7d7d20202020202020070000000000000004000000000000000000003f0000803e0000803e0000003e0000003e0000403f', 1760000014.25);
SELECT pg_catalog.setval('public.traffic_row_seq', 3, true);
ALTER TABLE ONLY public.failures
    ADD CONSTRAINT failures_pkey PRIMARY KEY (job, round);
ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT jobs_pkey PRIMARY KEY (job);
ALTER TABLE ONLY public.nodes
    ADD CONSTRAINT nodes_pkey PRIMARY KEY (client);
ALTER TABLE ONLY public.privacy
    ADD CONSTRAINT privacy_pkey PRIMARY KEY (job, round);
ALTER TABLE ONLY public.rounds
    ADD CONSTRAINT rounds_pkey PRIMARY KEY (job, round);
ALTER TABLE ONLY public.selections
    ADD CONSTRAINT selections_pkey PRIMARY KEY (job, round);
ALTER TABLE ONLY public.students
    ADD CONSTRAINT students_pkey PRIMARY KEY (job);
ALTER TABLE ONLY public.traffic
    ADD CONSTRAINT traffic_pkey PRIMARY KEY ("row");
ALTER TABLE ONLY public.uploads
    ADD CONSTRAINT uploads_pkey PRIMARY KEY (job, round);
