SELECT picked_up_at, pickup_year, pickup_month
FROM trips_enriched
WHERE year(picked_up_at) <> pickup_year OR month(picked_up_at) <> pickup_month
LIMIT 10
